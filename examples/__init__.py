"""One file per extension point: a part of your own, named in a config as ``examples.FILE:NAME``."""
