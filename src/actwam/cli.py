"""The command `actwam`: every function in `commands` is a subcommand, its arguments are the options."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import tyro

from actwam.commands import acting, bench, datasets, labelling, machine, official, serving, study, sweep, training
from actwam.console import stderr

COMMANDS: dict[str, Callable[..., int]] = {
    "demo": machine.demo,
    "collect": datasets.collect,
    "check": datasets.check,
    "mixture": datasets.mixture,
    "import": official.import_,
    "export": official.export,
    "parity": official.parity,
    "prepare": training.prepare,
    "train": training.train,
    "sweep": sweep.sweep,
    "verify": training.verify,
    "memory": training.memory,
    "label": labelling.label,
    "eval": acting.evaluate,
    "imagine": acting.imagine,
    "serve": serving.serve,
    "package": acting.package,
    "bench": bench.bench,
    "study": study.study,
    "report": machine.report,
    "doctor": machine.doctor,
}


CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that tell, whenever diffusers is imported, of parts of torchao that are missing and nothing here uses."""


def main() -> None:
    """Run a subcommand. What the user can mend is one line on stderr and exit code 2."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="actwam", description=__doc__)
    except (ValueError, OSError) as error:
        stderr.print(f"actwam: {error}", markup=False, soft_wrap=True)
        code = 2
    except KeyboardInterrupt:
        stderr.print("actwam: stopped; nothing half-written is left. Run it again; train and eval go on with --resume")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
