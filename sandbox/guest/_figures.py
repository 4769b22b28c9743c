"""Has matplotlib find its fonts, styles and settings, and draw without a display. Runs inside the sandbox.

The library is imported from a zip, and its data are a zip in that one. It opens them by path, so that what is needed to
draw is unpacked beside the program's own files when it is first imported.
"""

import io
import os
import sys
import zipimport

import _runner

FOLDER = "/tmp/.matplotlib"  # noqa: S108 - the guest's, in memory
"""Where the data are unpacked, and where the library keeps its cache."""

NEEDED = ("matplotlibrc", "stylelib/", *(f"fonts/ttf/{font}" for font in ("DejaVuSans", "LastResort", "STIX", "cm")))
"""How the names of what is unpacked begin: 6 MB. Other fonts, and samples, are left out."""


class _Finder:
    """Finds matplotlib, where it finds its data."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # noqa: ARG004
        if name != "matplotlib":
            return None
        spec = _library.find_spec(name)
        if spec is not None:
            spec.origin = f"{FOLDER}/__init__.py"  # its data are looked for beside that
            _unpack()
            os.environ.update(MPLBACKEND="Agg", MPLCONFIGDIR=FOLDER)
        return spec


def _unpack():
    """Unpack the data, unless they are there.

    Raises:
        ImportError: they do not fit into the files that the program may have.
    """
    import zipfile  # few programs draw

    try:
        with zipfile.ZipFile(io.BytesIO(_library.get_data(f"{_library.archive}/matplotlib/mpl-data.zip"))) as data:
            for name in data.namelist():
                path = f"{FOLDER}/mpl-data/{name}"
                if name.startswith(NEEDED) and not name.endswith("/") and not os.path.exists(path):
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    with open(path, "wb") as file:
                        file.write(data.read(name))
        os.makedirs(f"{FOLDER}/mpl-data/fonts/afm", exist_ok=True)
        os.makedirs(f"{FOLDER}/mpl-data/fonts/pdfcorefonts", exist_ok=True)
    except OSError as error:
        raise ImportError(
            f"matplotlib cannot unpack its fonts into {FOLDER}: {error.strerror}", name="matplotlib"
        ) from None


_library = zipimport.zipimporter(next(path for path in sys.path if path.endswith(".zip")))
sys.meta_path.insert(0, _Finder)
_runner.internal.add("<_figures>")
