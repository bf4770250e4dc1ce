"""``python core_alone.py COMMAND ...`` runs ``sf-llava COMMAND ...`` as if the packages of all extras were missing."""

import sys
from importlib.machinery import PathFinder

from sf_llava.__main__ import main
from sf_llava.extras import EXTRAS


class CoreAlone(PathFinder):
    """Finds what is installed, but for the packages of extras."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in EXTRAS else PathFinder.find_spec(fullname, path, target)


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(PathFinder)] = CoreAlone
    sys.argv[0] = "sf-llava"
    main()
