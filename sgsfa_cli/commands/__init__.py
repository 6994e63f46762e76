"""One module for each command or group of commands; `sgsfa_cli.main` loads the one that is asked for."""
