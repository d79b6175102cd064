"""What stood behind the addresses of LoRAs is gone from every row, and everything else is as it was."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, select

from schnell.database import migration
from schnell.database.migration import migrate, schema_is_current
from schnell.database.session import Database
from schnell.database.tables import lora_downloads, loras, records
from schnell.loras.references import key_of, parse_reference, show_reference

NOW = datetime.now(UTC)
SECRET = "https://site.test/style.safetensors?token=s3cr3t#part"
SHOWN = "https://site.test/style.safetensors"
OTHERS = ("owner/name", "https://site.test/plain.safetensors", "my-style", "civitai.com/models/5?modelVersionId=7")


def upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "0005")


def record(record_id: str, reference: str) -> dict[str, Any]:
    spec = {"prompt": "what? a/b#c @d://", "loras": [{"reference": reference, "scale": 0.5}]}
    return {
        "id": record_id,
        "team_id": "team",
        "user_id": "user",
        "instance": "main",
        "dialect": "onemin",
        "type": "IMAGE_GENERATOR",
        "model": "flux",
        "status": "SUCCESS",
        "prompt_object": {"prompt": "what?", "lora_weights": reference, "extra_lora": reference},
        "settings": spec,
        "response_object": {"seed": 1, "loras": [{"name": reference, "sha256": "a"}]},
        "receipts": [{"loras": [{"name": reference}], "model": {"name": "flux"}}],
        "cost": 1,
        "created_at": NOW,
    }


def lora(lora_id: str, source: str) -> dict[str, Any]:
    texts = {"owner": "team", "name": lora_id, "sha256": "a", "layout": "x", "made_for": "y", "created_by": "me"}
    lists: dict[str, Any] = {name: [] for name in ("trigger_words", "base_model", "warnings")}
    return texts | lists | {"id": lora_id, "source": source, "rank": 1, "bytes": 1, "created_at": NOW}


async def test_secrets_leave_the_rows_and_nothing_else_changes(database_url: str) -> None:
    database = Database(database_url)
    references = (SECRET, *OTHERS)
    keys = [repr(parse_reference(each)) for each in references if each != "my-style"]
    download = {"sha256": "a", "bytes": 1, "fetched_at": NOW, "used_at": NOW}
    async with database.write() as connection:
        await connection.run_sync(upgrade)
        await connection.execute(records.insert(), [record(str(n), each) for n, each in enumerate(references)])
        await connection.execute(loras.insert(), [lora(str(n), each) for n, each in enumerate(references)])
        rows = [{"reference": f"{whose}{key}", **download} for whose in ("", "team ") for key in keys]
        await connection.execute(lora_downloads.insert(), rows)
    await migrate(database)
    async with database.read() as connection:
        assert await schema_is_current(connection)
        found = (await connection.execute(select(records).order_by(records.c.id))).all()
        sources = (await connection.execute(select(loras.c.source).order_by(loras.c.id))).scalars().all()
        kept = set((await connection.execute(select(lora_downloads.c.reference))).scalars())
    await database.close()
    for row, sent in zip(found, references, strict=True):
        expected = record(row.id, SHOWN if sent == SECRET else sent)
        assert {name: getattr(row, name) for name in expected if name != "created_at"} == {
            name: value for name, value in expected.items() if name != "created_at"
        }
    assert sources == [SHOWN, *OTHERS]
    # a later request finds what was fetched before
    now_keys = {key_of(parse_reference(each)) for each in references if each != "my-style"}
    assert kept == now_keys | {f"team {key}" for key in now_keys}
    assert "s3cr3t" not in repr((found, sources, kept))
    assert show_reference(SECRET) == SHOWN
