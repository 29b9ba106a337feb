"""Verbs around the HTTP service: key."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from medray.verbs.options import AsJson


def key(
    name: Annotated[
        str, typer.Option("--id", help="Who uses it; letters, digits, dots, hyphens.")
    ] = "",
    days: Annotated[
        int, typer.Option("--days", min=0, max=36500, help="Valid for; 0: without an end.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Make an API key, print it once, and the line for the key file.

    stdout has the key, then the line; the words around them go to stderr.

    Example: medray key --id ward-3 --days 365
    """
    from medray.service.keys import make_key

    made = make_key(datetime.now(UTC), key_id=name, days=days)
    if as_json:
        typer.echo(json.dumps({"id": made.id, "key": made.key, "line": made.line}, sort_keys=True))
        return
    typer.echo("the key, shown only now; clients send it as X-API-Key:", err=True)
    typer.echo(made.key)
    typer.echo("its line for --keys FILE or MEDRAY_API_KEYS:", err=True)
    typer.echo(made.line)
