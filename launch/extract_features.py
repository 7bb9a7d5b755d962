"""How do images become features: python launch/extract_features.py --config CONFIG [key=value ...]

See `feature_extraction.command`, or --help.
"""

from __future__ import annotations

import sys

from feature_extraction.command import main

if __name__ == "__main__":
    sys.exit(main())
