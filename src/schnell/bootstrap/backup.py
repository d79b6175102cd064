"""What is backed up and restored, out of settings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schnell.backup.making import Installation
    from schnell.settings import Settings


def build_installation(settings: "Settings", *, to_restore: bool = False) -> "Installation":
    """The installation that the settings name. `to_restore`: it is empty, and gets its secret from the backup."""
    from schnell.backup.making import Installation
    from schnell.bootstrap.data import build_store, database_url, read_secrets
    from schnell.database.session import parse_database_url
    from schnell.provenance.key_files import keys_path

    url = database_url(settings)
    own_secret = None if settings.link_secrets else settings.data_dir / "link.secret"
    # reading would make one, which is not the backup's; and nothing signs a link while a backup is put back
    unset = to_restore and own_secret is not None
    store = build_store(settings.model_copy(update={"link_secrets": ("unset",)}) if unset else settings)
    loras = settings.data_dir / "loras"
    return Installation(
        database_url=url,
        store=store,
        adapters=loras / "adapters",
        previews=loras / "previews",
        secrets=() if unset else read_secrets(settings),
        own_secret=own_secret,
        signing_key=keys_path(settings.data_dir),
        shares_loras=parse_database_url(url).get_backend_name() == "postgresql",
    )
