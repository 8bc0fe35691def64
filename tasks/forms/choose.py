"""Which form a picture gets: all forms there are, and for each policy what is tried, in which order."""

from tasks.forms.exact import Exact
from tasks.forms.jxl_jpeg import JxlJpeg
from tasks.forms.lossless import Lossless
from tasks.forms.open_lossy import OpenLossy

FORMS = {form.name: form for form in (JxlJpeg(), Lossless(), Exact(), OpenLossy("avif"), OpenLossy("jxl"))}
