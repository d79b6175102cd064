from databases import database, migrated_url

__all__ = ["database", "migrated_url"]
