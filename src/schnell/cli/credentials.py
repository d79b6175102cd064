"""`schnell credentials`: the key and certificates that sign pictures."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schnell.cli.database import DataDir, open_database
from schnell.cli.output import AsJson, print_fields, print_json, say
from schnell.cli.people import here

if TYPE_CHECKING:
    from schnell.provenance.keys import SigningKeys
    from schnell.settings import Settings

credentials_app = typer.Typer(help="The key that signs pictures, and its certificates.", no_args_is_help=True)

_RESTART = "running servers sign with it from their next start on"


@credentials_app.command("show")
def show_credentials(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Who signs, with what, until when, and whether it works."""
    from schnell.bootstrap import build_signer

    settings = _settings(data_dir)
    keys = _current_keys(settings, data_dir)
    build_signer(settings, keys)
    fields = _describe(keys, settings)
    print_json(fields) if as_json else print_fields(fields)


@credentials_app.command("import")
def import_credentials(
    certificates: Annotated[Path, typer.Argument(help="PEM file with the certificates, the key's own first.")],
    key: Annotated[Path | None, typer.Argument(help="PEM file with the private key, unless it is in the same.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Sign with a key and certificates of your own from the next start on."""
    from schnell.bootstrap import build_signer
    from schnell.provenance.keys import read_keys

    settings = _settings(data_dir)
    files = {"certificates": certificates, "key": key}
    keys = read_keys("\n".join(_read(field, file) for field, file in files.items() if file is not None))
    # tried before the old key is let go
    build_signer(settings, keys)
    asyncio.run(_replace(settings, keys, "signing-key.imported"))
    say(f"imported {keys.leaf.subject.rfc4514_string()}; {_RESTART}")


@credentials_app.command("export-root")
def export_root(
    output: Annotated[Path | None, typer.Option(help="File to write; standard output if absent.")] = None,
    data_dir: DataDir = None,
) -> None:
    """The certificates that others need to trust this server's signature, as PEM."""
    pem = _current_keys(_settings(data_dir), data_dir).roots_pem()
    if output is None:
        typer.echo(pem, nl=False)
    else:
        output.write_text(pem, "ascii")
        say(f"wrote {output}; others check with: schnell verify --trust {output.name} PICTURE")


@credentials_app.command("rotate")
def rotate_credentials(data_dir: DataDir = None) -> None:
    """Make a new signing key under the same root: whoever trusts the root trusts it, too."""
    from schnell.clock import now
    from schnell.provenance.keys import renew_keys

    settings = _settings(data_dir)
    keys = renew_keys(_current_keys(settings, data_dir), settings.credentials_name, now())
    asyncio.run(_replace(settings, keys, "signing-key.renewed"))
    say(f"made a new key, valid until {keys.leaf.not_valid_after_utc:%Y-%m-%d}; {_RESTART}")


def _settings(data_dir: Path | None) -> "Settings":
    from schnell.bootstrap import read_settings

    return read_settings(data_dir=data_dir)


def _current_keys(settings: "Settings", data_dir: Path | None) -> "SigningKeys":
    from schnell.bootstrap import check_data, read_shared_keys

    if data_dir is not None:
        # the first look makes keys, but not in a folder that was mistyped
        check_data(settings)
    return asyncio.run(read_shared_keys(settings))


async def _replace(settings: "Settings", keys: "SigningKeys", action: str) -> None:
    from schnell.accounts.audit import record
    from schnell.accounts.signing_keys import replace_keys
    from schnell.bootstrap.data import read_secrets
    from schnell.provenance.key_files import keep_keys

    async with open_database(settings, make=True) as database, database.write() as connection:
        await replace_keys(connection, read_secrets(settings), keys)
        await record(connection, here(), action, keys.leaf.subject.rfc4514_string())
    keep_keys(settings.data_dir, keys)


def _describe(keys: "SigningKeys", settings: "Settings") -> dict[str, Any]:
    from cryptography.hazmat.primitives.hashes import SHA256

    from schnell.provenance.key_files import keys_path

    return {
        "signer": keys.leaf.subject.rfc4514_string(),
        "issuer": keys.leaf.issuer.rfc4514_string(),
        "algorithm": keys.algorithm,
        "valid_until": f"{keys.leaf.not_valid_after_utc:%Y-%m-%d}",
        "made_by": "this server" if keys.is_ours else "import",
        "roots": tuple(root.fingerprint(SHA256()).hex() for root in keys.roots),
        "file": str(keys_path(settings.data_dir)),
    }


def _read(field: str, file: Path) -> str:
    from schnell.errors import CredentialsError, FieldProblem, InvalidFieldError

    try:
        return file.read_text("ascii")
    except FileNotFoundError as cause:
        raise InvalidFieldError(FieldProblem(field, f"there is no file {file}")) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise CredentialsError(f"{file} cannot be read as PEM: {cause}") from cause
