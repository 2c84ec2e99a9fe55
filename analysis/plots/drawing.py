"""Pictures as reports take them: drawn once for each width, in SVG for pages and in PNG for all."""

from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure

from pyro_meta.analysis.document import Drawn
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.of_run import passage_caption
from pyro_meta.analysis.plots import Picture, routes
from pyro_meta.analysis.plots.style import as_data_uri, as_png, narrow, wrap_labels


def drawn(
    findings: Findings, pictures: Sequence[Picture], for_page: bool, tell: Callable[[str], None]
) -> Iterator[Drawn]:
    """The pictures that apply to a run, within `styled`."""
    for picture in pictures:
        tell(f"{findings.reading.name}: {picture.title}")
        if picture.applies(findings):
            yield of_figure(
                picture.name, picture.section, picture.title, picture.how,
                picture.says(findings), lambda picture=picture: picture.draw(findings),  # type: ignore[misc]
                for_page, picture.is_narrow,
            )  # fmt: skip


def said(findings: Findings, pictures: Sequence[Picture]) -> Iterator[Drawn]:
    """What the pictures say, without drawing them."""
    for picture in pictures:
        if picture.applies(findings):
            yield Drawn(
                picture.name, picture.section, picture.title, picture.how, picture.says(findings)
            )


def of_figure(
    name: str,
    section: str,
    title: str,
    how: str,
    says: str,
    draw: Callable[[], Figure],
    for_page: bool,
    is_narrow: bool = False,
) -> Drawn:
    """A picture in PNG; `for_page` in SVG too, for wide screens and for phones."""
    figure = draw()
    small = ""
    if for_page:
        with narrow():
            wrap_labels(own := draw())
            small = as_data_uri(own)
    return Drawn(
        name, section, title, how, says, as_png(figure),
        as_data_uri(figure) if for_page else "", small, is_narrow, f"{name}.png",
    )  # fmt: skip


def passage(findings: Findings, is_drawn: bool) -> Drawn:
    """The passage of validation text: of the page it is text, of all else a picture."""
    run = findings.reading
    png = as_png(routes.passage(run)) if is_drawn else b""
    says = (
        f"The first tokens of the validation text in {len(run.layer_names)} layers, each on the "
        f"colour of what it runs: {', '.join(run.mechanisms)}."
    )
    return Drawn(
        "passage", "passage", "What each token chose", passage_caption(findings), says, png,
        file="passage.png",
    )  # fmt: skip
