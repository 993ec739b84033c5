"""`report`: everything a bug report needs, in one JSON value or one zip. Never a secret: tokens appear as ids.

Bounded by the router (``REPORT_ROWS_MAX`` rows of each table); what was cut is said in ``truncated``.
"""

import io
import os
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from weave_router.api import schema, text
from weave_router.cli.common import STDOUT, client, flag, json_flag, open_output, run_dir_flag
from weave_router.errors import UserError


@click.command(short_help="Write everything a bug report needs.")
@flag("--output", "-o", default=STDOUT, metavar="FILE", help="Where to write; a name ending in .zip makes a zip.")
@run_dir_flag
@json_flag
def report(output: str, run_dir: str, as_json: bool) -> None:
    """Write status, counters, drops, trace and tables for a bug report; JSON, whether --json is given or not.

    \b
    Examples:
      weave-router report > report.json
      weave-router report -o report.zip
    """
    made = client(run_dir).get("/report", schema.Report)
    zipped = output.endswith(".zip") and not as_json
    data = _zip(made) if zipped else _json(made)
    descriptor = open_output(output, "--output")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"--output: cannot write {output}: {error.strerror}") from None
    if output != STDOUT:
        click.echo(f"{os.path.abspath(output)}: {len(data)} bytes")


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _zip(made: schema.Report) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _members(made):
            archive.writestr(zipfile.ZipInfo(name, time.gmtime(made.created_at)[:6]), content, zipfile.ZIP_DEFLATED)
    return data.getvalue()


def _members(made: schema.Report) -> Iterator[tuple[str, bytes]]:
    now = made.created_at
    pages = [text.render(made.status, subject, now) for subject in ("", *text.SUBJECTS)]
    titles = ["", *(f"== {subject}\n" for subject in text.SUBJECTS)]
    yield "status.txt", "\n\n".join(title + page for title, page in zip(titles, pages, strict=True)).encode() + b"\n"
    yield "status.json", _json(made.status)
    yield "trace.json", _json(made.trace)
    for name, rows in made.tables.items():
        yield f"tables/{os.path.basename(name) or 'table'}.json", _json(rows)
    yield "truncated.json", _json(made.truncated)
