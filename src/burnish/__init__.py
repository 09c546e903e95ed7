from burnish.compiler.capture import capture
from burnish.compiler.program import Program
