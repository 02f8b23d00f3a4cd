"""Commands about images: build, ls, import, tag, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from poclab.cli import completion, context, output, prompts, tables
from poclab.cli.options import OutputOption, YesOption
from poclab.cli.output import Format
from poclab.core.errors import UsageError
from poclab.core.units import format_size
from poclab.model.names import check_name, check_tag
from poclab.model.version import Profile, Ref

app = typer.Typer(
    help="Versions of images: build, list, import, tag, remove.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def build(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="images/IMAGE/ or a directory with image.yaml.",
            autocompletion=completion.complete_image,
        ),
    ],
    tag: Annotated[str, typer.Option("--tag", "-t", metavar="TAG", help="The version's tag.")],
    build_arg: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="KEY=VALUE", help="For the Containerfile."),
    ] = None,
    builder: Annotated[
        str | None,
        typer.Option("--builder", metavar="NAME", help="In place of the one in image.yaml."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build every layer and the disk anew.")
    ] = False,
) -> None:
    """Build a container image, make a bootable disk of it, store it as a version."""
    from poclab.images.build import build_image
    from poclab.images.lifecycle import collect
    from poclab.images.pack import pack_older
    from poclab.schema.image import load_image
    from poclab.store.versions import Store

    check_tag(tag)
    definition = load_image(context.image_directory(image))
    arguments = dict(_key_value(item) for item in build_arg or ())
    with context.host() as host:
        collect(host)
        store = Store(host.pool, host.uri)
        build_image(
            store,
            definition,
            tag,
            uri=host.uri,
            build_args=arguments,
            builder=builder,
            no_cache=no_cache,
        )
        pack_older(host, definition.name)
        host.settle()


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--build-arg {text!r} is not KEY=VALUE")
    return key, value


def _published(ref: Ref, size: int) -> None:
    if not context.options().quiet:
        output.tell(f"{ref} is stored, {format_size(size)}")


@app.command("ls")
def list_(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Only these images.")
    ] = None,
    form: OutputOption = Format.TABLE,
) -> None:
    """List the versions on the host."""
    from poclab.images.catalog import image_rows

    wanted = {check_name("image", name) for name in images or ()}
    with context.host() as host:
        rows = [row for row in image_rows(host) if not wanted or row.name in wanted]
    output.listing(
        rows,
        tables.IMAGES,
        form,
        lambda row: f"{row.name}:{row.tag}",
        empty="no version is stored on this host",
    )


@app.command("import")
def import_(
    ref: Annotated[str, typer.Argument(metavar="NAME:TAG", help="The version to make.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A qcow2, raw, VMDK, VDI, VHD or VHDX disk or an OVA; - is standard input.",
        ),
    ],
    profile: Annotated[
        Profile | None,
        typer.Option("--profile", help="Which devices the guest can drive; left out: by the disk."),
    ] = None,
    user: Annotated[
        str, typer.Option("--user", metavar="USER", help="The user to log in as over SSH.")
    ] = "root",
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="Insist on it; left out: by the header."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="What the file must have.")
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option("--digest", metavar="DIGEST", help="The same as `image show` prints it."),
    ] = None,
    disk: Annotated[
        str | None, typer.Option("--disk", metavar="NAME", help="Which disk of an OVA.")
    ] = None,
    size_limit: Annotated[
        str, typer.Option("--size-limit", metavar="SIZE", help="Of standard input, at most.")
    ] = "1TiB",
) -> None:
    """Store a disk that no container image can hold as a version."""
    from poclab.cli import importing
    from poclab.images.import_disk import ImportRequest, import_disk
    from poclab.images.lifecycle import collect
    from poclab.images.pack import pack_older
    from poclab.store.versions import Store

    name = Ref.parse(ref)
    if sha256 and digest:
        raise UsageError("--sha256 and --digest say the same twice", fix="give one of them")
    request = ImportRequest(
        source=importing.source(file),
        profile=profile,
        user=user,
        format=form,
        digest=digest or sha256,
        disk=disk,
        size_limit=importing.size(size_limit),
        choose=importing.chooser(),
    )
    with context.host() as host:
        collect(host)
        version = import_disk(Store(host.pool, host.uri), name, request)
        _published(version.ref, version.size)
        pack_older(host, name.image)
        host.settle()


@app.command()
def tag(
    source: Annotated[str, typer.Argument(metavar="NAME:TAG", help="A version.")],
    target: Annotated[str, typer.Argument(metavar="NAME:NEWTAG", help="Its second name.")],
) -> None:
    """Give a version a second name; the disk is shared."""
    from poclab.images.lifecycle import tag as give

    old, new = Ref.parse(source), Ref.parse(target)
    with context.host() as host:
        give(host, old, new)


@app.command()
def rm(
    refs: Annotated[list[str], typer.Argument(metavar="NAME:TAG...", help="Versions.")],
    yes: YesOption = False,
) -> None:
    """Remove versions that no VM stands on."""
    from poclab.images.lifecycle import remove

    found = [Ref.parse(text) for text in dict.fromkeys(refs)]
    if not prompts.confirmed(f"Remove {', '.join(map(str, found))}?", yes=yes):
        output.tell("nothing was removed")
        raise typer.Exit(1)
    with context.host() as host:
        remove(host, found)


@app.command()
def pack(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME:TAG]...", help="Left out: all that may be packed."),
    ] = None,
) -> None:
    """Compress versions that no VM stands on; `up` and `reset` bring them back."""
    from poclab.images import pack as packing

    found = [Ref.parse(text) for text in dict.fromkeys(refs or ())]
    with context.host() as host:
        if found:
            packing.pack(host, found)
        elif not packing.pack_all(host) and not context.options().quiet:
            output.tell("no version is to be packed")
        host.settle()


@app.command()
def unpack(
    refs: Annotated[list[str], typer.Argument(metavar="NAME:TAG...", help="Versions.")],
) -> None:
    """Bring packed versions back, for a quick `up` or `reset` later."""
    from poclab.images import pack as packing

    found = [Ref.parse(text) for text in dict.fromkeys(refs)]
    with context.host() as host:
        packing.unpack(host, found)
        host.settle()
