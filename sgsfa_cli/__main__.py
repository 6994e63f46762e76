"""`python -m sgsfa_cli`, which `torchrun -m sgsfa_cli` needs."""

from sgsfa_cli.main import run

if __name__ == "__main__":
    run()
