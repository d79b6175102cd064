from databases import database, database_url, migrated_url

__all__ = ["database", "database_url", "migrated_url"]
