"""What answers are worth: measures, reference rows and the report. Imports data/'s lexicon, never torch."""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "data"))
