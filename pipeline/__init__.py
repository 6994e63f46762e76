"""The library behind `sgsfa`: masks, training, features, matching. Nothing here imports the command line."""
