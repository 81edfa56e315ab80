"""The command line: arguments in, printed results out. Logic lives in the other rooms."""
