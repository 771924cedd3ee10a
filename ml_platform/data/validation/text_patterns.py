"""Regular expressions of the values in text files, for all readers: Polars and Python understand them.

`value_grammar` describes the grammar. An expression must match a whole cell.
"""

INTEGER = "-?[0-9]+"
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# Arrow misreads decimals of more digits than it can hold.
DECIMAL = r"-?[0-9]{1,38}(?:\.[0-9]{0,38})?"
NOT_FINITE = "[+-]?(?i:nan|inf|infinity)"
BOOLEAN = "true|True|TRUE|1|false|False|FALSE|0"
DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
OFFSET = "(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)"
# Digits of a second's fraction by unit: more would be lost.
FRACTIONS = {"s": "", "ms": r"(?:\.[0-9]{1,3})?", "us": r"(?:\.[0-9]{1,6})?", "ns": r"(?:\.[0-9]{1,9})?"}
