"""Time and memory by length for the operators of an attention study that was run, and its page drawn with them.

    python benchmarks/lengths.py attention-listops reports/attention/listops

The folder holds the study's records; `lengths.json`, `report.*` and the plots are written beside them. What was
measured there with the same settings is not measured again.
"""

import argparse
from pathlib import Path

import torch

from effitrans.evaluation import Record
from effitrans.recipes import load_study
from effitrans.recipes.attention import common_site, draw_with_lengths, operators_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name or file of an attention study")
    parser.add_argument("folder", type=Path, help="where its records are")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = load_study(options.study)
    variants = operators_of(study)
    records = [Record.load(options.folder / "records" / f"{one.label}.json") for one in study.runs(options.folder)]
    title = study.name.replace("attention-", "attention on ")
    draw_with_lengths(title, records, variants, common_site(study, variants), options.folder)


if __name__ == "__main__":
    main()
