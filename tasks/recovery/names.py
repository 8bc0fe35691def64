"""Under which names keys are given back: new PNGs, keys that OUT cannot hold, two keys that meet in one name.

A decoded picture is a new PNG: `photo.jpg` comes back as `photo.jpg.png`, `photo.png` as `photo.png`. What is copied
keeps its key. Where two keys would meet in one name (`a.jpg` beside `a.jpg.png`), the one that needs no new name keeps
it and the other one gets another `.png`. What OUT cannot hold (tasks/stores: on a local folder `a` beside `a/b`, `/a`,
`a/`, 256-byte names ...; on S3 names above 1024 bytes) goes to `nightpress-odd-names/<hash>`, and
`nightpress-odd-names/names.csv` says which key each unusual name stands for. Names depend on the run and the kind of
OUT alone, so that single keys land where a whole restore puts them.
"""

import hashlib
import re

from tasks.stores.base import Store
from tasks.stores.local import LocalStore

ODD = "nightpress-odd-names/"


def restored_names(keys: list[tuple[str, bool]], out: Store) -> dict[str, str]:
    """A name in `out` for each (key, whether it is copied as it is); all different, see the module's text."""

    def keeps_name(key: str, copied: bool) -> bool:
        return copied or key.lower().endswith(".png")

    names = {key: key for key, copied in keys if keeps_name(key, copied)}
    taken = set(names)
    for key, copied in sorted(keys):
        if not keeps_name(key, copied):
            name = key + ".png"
            while name in taken:
                name += ".png"
            taken.add(name)
            names[key] = name
    folders = set()
    if isinstance(out, LocalStore):
        for name in names.values():
            while (name := name.rpartition("/")[0]) and name not in folders:
                folders.add(name)
    for key, name in names.items():
        if name in folders or name.startswith(ODD) or out.refusal(name):
            names[key] = odd_name(key, name)
    return names


def odd_name(key: str, name: str) -> str:
    suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", name)
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return f"{ODD}{digest[:32]}{suffix[0] if suffix else ''}"
