"""`schnell verify`: where pictures come from, by what they carry."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from schnell.cli.generate import resolve_lora
from schnell.cli.output import AsJson, print_json, say
from schnell.errors import FieldProblem, ImageMetadataError, InvalidFieldError

_STATES = {
    "trusted": "valid, signed by {signer}, who is trusted here",
    "valid": "valid, signed by {signer}, who is unknown here (--trust ROOT.pem)",
    "invalid": "broken: {problems}",
    "absent": "none",
}


def verify_command(
    files: Annotated[list[Path], typer.Argument(help="Pictures to check.")],
    trust: Annotated[Path | None, typer.Option(help="PEM file with root certificates that you trust.")] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Search for the mark at every scale; ten times as long.")
    ] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Draw the picture of the receipt again, and compare.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check where pictures come from: credentials, invisible mark, metadata, receipt. Exit code 1 if one is none."""
    roots = _own_roots() + ("" if trust is None else _read_roots(trust))
    results = [_check(file, roots, thorough=thorough, redo=redo) for file in files]
    if as_json:
        print_json(results[0] if len(results) == 1 else results)
    else:
        for result in results:
            typer.echo("\n".join(_lines(result)))
    if any("error" in result for result in results):
        raise typer.Exit(1)


def _check(file: Path, roots: str, *, thorough: bool, redo: bool) -> dict[str, Any]:
    from schnell.provenance.verification import verify

    try:
        if not file.exists():
            return {"file": str(file), "error": "there is no such file"}
        data = file.read_bytes()
        found = verify(data, roots_pem=roots, thorough=thorough)
    except OSError as cause:
        return {"file": str(file), "error": f"it cannot be read: {cause.strerror or cause}"}
    except (ImageMetadataError, MemoryError) as cause:
        return {"file": str(file), "error": str(cause) or "it takes too much memory"}
    result = {"file": str(file)} | found.to_json()
    if redo and found.receipt is not None:
        result["redo"] = _redo(data, found.receipt.fields)
    return result


def _own_roots() -> str:
    """This machine's own, if it signs: its pictures are not a stranger's."""
    from schnell.bootstrap import read_settings
    from schnell.errors import CredentialsError
    from schnell.provenance.key_files import find_keys

    try:
        keys = find_keys(read_settings().data_dir)
    except CredentialsError as cause:
        say(f"warning: {cause.message}")
        return ""
    return "" if keys is None else keys.roots_pem()


def _read_roots(file: Path) -> str:
    from cryptography import x509

    try:
        pem = file.read_text("ascii")
        x509.load_pem_x509_certificates(pem.encode())
    except (OSError, ValueError) as cause:
        raise InvalidFieldError(FieldProblem("trust", f"{file} is no PEM file with certificates: {cause}")) from cause
    return pem


def _redo(data: bytes, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a receipt's picture again, and say how near it comes to the one in the file."""
    from schnell.bootstrap import build_engine
    from schnell.engine.engine import generate
    from schnell.provenance.file_parts import without_credentials
    from schnell.provenance.proof import Proof
    from schnell.provenance.receipt import spec_from_receipt
    from schnell.spec import Job

    try:
        spec = spec_from_receipt(receipt)
        engine = build_engine(str(receipt["model"]["name"]), safety=False, proof=Proof(marks=spec.watermark))
    except (ImageMetadataError, KeyError, TypeError) as cause:
        return {"same": None, "reason": str(cause)}
    if engine.model_sha256 != receipt["model"]["sha256"]:
        return {"same": None, "reason": "the model here has other weights"}
    adapters = tuple(resolve_lora(lora, engine.folder) for lora in spec.loras)
    job = Job("redo", "cli", spec, spec.seed or 0, adapters)
    drawn = generate(engine, job, lambda _: None).images[0].data
    if without_credentials(data) == drawn:
        return {"same": True, "reason": "the same file, byte for byte"}
    return _compare_pixels(data, drawn)


def _compare_pixels(data: bytes, drawn: bytes) -> dict[str, Any]:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    first, second = (Image.open(BytesIO(each)).convert("RGB") for each in (data, drawn))
    if first.size != second.size:
        return {"same": False, "reason": f"{first.size} pixels, drawn again {second.size}"}
    error = float(np.mean((np.asarray(first, np.float64) - np.asarray(second, np.float64)) ** 2))
    decibels = 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))
    # another processor, or a copy that was saved again, stays above; another seed or prompt, far below
    return {"same": decibels >= 30, "reason": f"{decibels:.1f} dB from the picture that was drawn again"}


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield result["file"]
    if "error" in result:
        yield f"  error        {result['error']}"
        return
    credentials = result["credentials"]
    shown = {"signer": credentials["signer"] or "a nameless signer", "problems": ", ".join(credentials["problems"])}
    yield f"  credentials  {_STATES[credentials['state']].format(**shown)}"
    yield f"  mark         {_mark_line(result['mark'])}"
    yield f"  metadata     {result['metadata']['digital_source_type'] or 'says nothing of it'}"
    yield f"  receipt      {_receipt_line(result['receipt'])}"
    if "redo" in result:
        yield f"  drawn again  {result['redo']['reason']}"
    yield from (f"  note         {note}" for note in result["notes"])
    yield f"  = {result['summary']}"


def _mark_line(mark: Mapping[str, Any]) -> str:
    if not mark["found"]:
        return "none" if mark["found"] is False else "not looked for"
    number = "its number cannot be read" if mark["id"] is None else f"number {mark['id']}"
    return f"found ({mark['certainty']} of 7), {number}, {mark['orientation']}, {mark['scale']:.0%} of its size"


def _receipt_line(receipt: Mapping[str, Any] | None) -> str:
    if receipt is None:
        return "none"
    fields = receipt["fields"]
    model = fields.get("model") if isinstance(fields.get("model"), dict) else {}
    agrees = {True: "agrees with the mark", False: "is of another picture than the mark", None: "no mark to compare"}
    return f"{model.get('name', 'some model')}, seed {fields.get('seed')}; {agrees[receipt['agrees_with_mark']]}"
