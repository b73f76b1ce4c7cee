"""What a person touches: the command line, and the sources of the phone and web apps."""
