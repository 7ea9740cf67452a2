"""How results show themselves: in one line, and in notebooks."""
