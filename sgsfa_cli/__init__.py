"""The command line of sgsfa."""
