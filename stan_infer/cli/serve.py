"""The command `stan-infer serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from stan_infer.cli.given import session_options
from stan_infer.cli.options import (
    AutoRebuild,
    Calibration,
    Device,
    Engine,
    Json,
    LibraryFolder,
    Locked,
    ModelOfLibrary,
    MugOffered,
    Precision,
    Provider,
    Settings,
    Template,
    Threads,
    Timeout,
    Weights,
)


def serve(
    context: typer.Context,
    library: LibraryFolder,
    host: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Address to listen at; another than this machine's own lets others in, without a "
            "password.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen at (0: a free one).")
    ] = 8000,
    open_page: Annotated[
        bool, typer.Option("--open", help="Also open the page in the browser.")
    ] = False,
    mug: MugOffered = False,
    template: Template = None,
    model: ModelOfLibrary = None,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Show a library as a web page: search, look, play.

    The page is served on this machine until Ctrl-C. It changes nothing and fetches nothing; rows
    that `embed` adds to the library meanwhile are found.
    """
    from stan_infer.cli.report import print_json, print_lines, say
    from stan_infer.library.server.serve import is_local, serve_library

    if not is_local(host):
        say(
            f"warning: --host {host}: whoever reaches this address can search the library and "
            "watch its videos; there is no password, and nothing is encrypted"
        )

    def ready(address: str) -> None:
        if json:
            print_json("serve", {"library": str(library), "url": address})
        else:
            print_lines(f"{address} shows {library}; Ctrl-C ends it")
        if open_page:
            import webbrowser

            if not webbrowser.open(address):
                say(f"note: no browser was found; open {address} yourself")

    serve_library(
        library,
        model=model,
        say=say,
        ready=ready,
        host=host,
        port=port,
        mug=mug,
        template=template,
        timeout_s=timeout,
        **session_options(context),
    )
