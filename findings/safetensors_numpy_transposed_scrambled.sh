#!/usr/bin/env bash
# Guess:    safetensors.numpy stores the array it is given; a transposed view either comes back equal
#           (as in np.save) or is refused (as safetensors.torch refuses a non-contiguous tensor).
# Happens:  0.8.0 writes the memory behind the view under the view's shape. Nothing is raised or
#           warned; the file loads, shape and dtype are right, the values are in the wrong places.
# Matters:  image features are turned from [channels, cells] to [cells, channels] before they are
#           stored, and `.T`, `transpose`, `[..., ::2]` and a Fortran-ordered PCA matrix are all such
#           views. The feature store then trains a model on shuffled numbers. np.ascontiguousarray cures it.
# Versions: wrong in safetensors 0.8.0 (numpy 2.4.6); right in 0.7.0, which is run below for comparison.
#           Reported upstream as safetensors issue 825.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check)

cat > "$work/check.py" <<'PY'
import sys
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

folder = sys.argv[1]
scrambles = safetensors.__version__ == "0.8.0"
print(f"\nsafetensors {safetensors.__version__}, numpy {np.__version__}")
maps = np.arange(12, dtype=np.float32).reshape(3, 4)       # 3 channels, 4 image cells
cases = {
    "as it is": maps,
    "maps.T": maps.T,
    "Fortran order": np.asfortranarray(maps),
    "maps[:, ::2]": maps[:, ::2],
    "ascontiguousarray(maps.T)": np.ascontiguousarray(maps.T),
}
for name, array in cases.items():
    save_file({"x": array}, f"{folder}/x.safetensors")
    back = load_file(f"{folder}/x.safetensors")["x"]
    np.save(f"{folder}/x.npy", array)
    assert np.array_equal(np.load(f"{folder}/x.npy"), array)          # np.save is always right
    assert back.shape == array.shape and back.dtype == array.dtype
    same = np.array_equal(back, array)
    print(f"{name:26} came back equal: {same}")
    if name == "maps.T":
        print("   given, first cell   ", array[0].tolist())
        print("   loaded, first cell  ", back[0].tolist())
    assert same == (array.flags["C_CONTIGUOUS"] or not scrambles), name
PY

"${pip[@]}" 'numpy==2.4.6' 'safetensors==0.7.0'
"$work/venv/bin/python" "$work/check.py" "$work"
"${pip[@]}" 'safetensors==0.8.0'
"$work/venv/bin/python" "$work/check.py" "$work"
echo "behavior as described"
