"""`python -m effitrans`, which is what `torchrun -m effitrans` runs."""

from effitrans.cli import main

main()
