"""How do images become features: python -m feature_extraction --config CONFIG [key=value ...]"""

from __future__ import annotations

import sys

from feature_extraction.command import main

if __name__ == "__main__":
    sys.exit(main())
