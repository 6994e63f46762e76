"""Rank a folder of images for a query image: search_a_gallery.py QUERY GALLERY [CHECKPOINT]."""

import sys

import sgsfa


def main(query: str, gallery: str, checkpoint: str = "builtin") -> None:
    """Print the five nearest images of the folder `gallery`, and why the first one is first."""
    model = sgsfa.load_model(checkpoint)
    asked = model.embed([query])
    visible = [
        part for part, shown in zip(("head", "upper", "lower", "shoes"), asked.visible[0], strict=False) if shown
    ]
    print("visible in the query:", ", ".join(visible) or "nothing")
    found = sgsfa.search(asked, gallery, k=5, checkpoint=checkpoint)
    print(found.table())
    nearest = f"{gallery}/{found.queries[0].nearest[0].name}"
    print(sgsfa.compare(query, nearest, checkpoint=checkpoint).table())


if __name__ == "__main__":
    main(*sys.argv[1:])
