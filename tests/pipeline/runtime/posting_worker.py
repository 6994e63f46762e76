"""A process of a distributed run whose leader calls with more than torch's store takes at once."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist

from pipeline.runtime.distributed import leading, same_everywhere, serve, together, wait_for_all, world


def digest(text: bytes) -> tuple[str, bool, bool]:
    mine = hashlib.sha256(text).hexdigest()
    wait_for_all()
    numbers = torch.tensor([int(mine[:12], 16)])
    dist.all_reduce(numbers)
    return mine, bool(numbers[0] == 2 * int(mine[:12], 16)), same_everywhere(7) and not same_everywhere(world().rank)


def main() -> None:
    from posting_worker import digest  # by the name that the other process can import it by

    if not world().leader:
        serve()
        return
    text = bytes(range(256)) * 80_000
    with leading():
        for piece in (b"", text, text[:5]):
            mine, everywhere, numbers = together(digest, None, text=piece)
            assert mine == hashlib.sha256(piece).hexdigest()
            assert everywhere
            assert numbers
    print("done")


if __name__ == "__main__":
    main()
