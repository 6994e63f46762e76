"""Part masks: building them, looking into them, judging them, handing them to other programs."""
