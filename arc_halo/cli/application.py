"""The root of all commands: global options, and errors as one line."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from arc_halo import __version__
from arc_halo.cli import attention, blobs, cache, db, demo, infer, merge, model, prune, reactor, train, verify
from arc_halo.cli.invocation import Invocation
from arc_halo.cli.output import print_error, print_interruption
from arc_halo.errors import ArcHaloError


class RootGroup(TyperGroup):
    """Runs a command; what it raises becomes one line on stderr and exit code 1, unless ``--debug`` is on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe must be noticed here, where it is quiet, not at exit
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # of the library that Typer validates with
            raise
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise  # Typer's own, shown or kept quiet by it
        except KeyboardInterrupt as error:
            print_interruption(error)
            raise typer.Exit(130) from error
        except Exception as error:
            if ctx.params["debug"]:
                raise
            print_error(_one_line(error))
            raise typer.Exit(1) from error
        return result


app = typer.Typer(
    name="arc-halo",
    cls=RootGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("verify")(verify.verify)
app.command("repair")(verify.repair)
app.command("merge")(merge.merge)
app.command("prune")(prune.prune)
app.add_typer(model.app, name="model")
app.add_typer(train.app, name="train")
app.add_typer(infer.app, name="infer")
app.add_typer(reactor.app, name="reactor")
app.add_typer(attention.app, name="attention")
app.add_typer(db.app, name="db")
app.add_typer(blobs.app, name="blobs")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Run the command line of this process; ends by ``SystemExit``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # tokens know more letters than some terminals
    app(prog_name="arc-halo")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"arc-halo {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    url: Annotated[
        str | None,
        typer.Option(
            help="Database to use. Better said by ARC_HALO_DATABASE_URL, which nobody sees in the process list; "
            "without either the embedded server is used."
        ),
    ] = None,
    blob_url: Annotated[
        str | None,
        typer.Option(help="Object store for payloads: file://, s3://, gs:// or az://. Else ARC_HALO_BLOB_URL."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The whole life of transformer models in one PostgreSQL database.

    Start with: arc-halo demo
    """
    del debug, version  # read from the context, and by its callback
    context.obj = Invocation(url, blob_url)


def _one_line(error: Exception) -> str:
    if isinstance(error, ArcHaloError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}; `arc-halo --debug ...` shows where"
