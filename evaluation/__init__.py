"""What answers are worth: measures, reference rows and the report. The lexicon is that of data/."""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "data"))
