"""The commands of the command line, by what people do; `ml_platform.cli` names them."""
