"""What changes a Program: one folder per kind of pass. Knows burnish.compiler alone."""
