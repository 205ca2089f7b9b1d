"""Writes docs/online.md."""

from pathlib import Path

from reducible.lab.report.results import replace_block
from reducible.lab.studies.equal_time.recipes import DATA, data_of
from reducible.lab.studies.online.recipes import ONLINE, VARIANTS
from reducible.lab.studies.online.tables import Study, block, titles_list


def write(docs: Path, results: Path) -> None:
    """What the variants of choosing by loss are, and what was found."""
    page = docs / "online.md"
    steps = {recipe.name.split("/")[-1]: recipe.steps for recipe in ONLINE}
    titles = {name: variant.title for name, variant in VARIANTS.items()}
    replace_block(page, "online-variants", titles_list(titles, steps))
    kinds = list(data_of("mlp"))
    noisy = [data for data in kinds if DATA[data]["label_noise"] > 0]
    study = Study.read(results, list(VARIANTS), kinds)
    replace_block(page, "online", block(study, noisy=noisy))
