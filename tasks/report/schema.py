"""The report's one table: a row per source object of a run, failures included.

This file holds the schema and nothing else; who fills which column lives with the step that knows it
(inspect, duplicates, compress), who writes the file lives in night/publish.py.
"""

import pyarrow as pa

SCHEMA_VERSION = 1

STATUSES = ("compressed", "duplicate", "kept", "failed", "skipped")

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # relative to SOURCE
        ("status", pa.string()),  # one of STATUSES
        ("reason", pa.string()),  # null for plain `compressed`
        ("first_run", pa.string()),  # run that made this row's decision
        ("source_bytes", pa.int64()),
        ("stored_bytes", pa.int64()),  # cost under DEST; 0 unless compressed
        ("output_key", pa.string()),  # under DEST; a duplicate: its keeper's
        ("output_offset", pa.int64()),
        ("output_length", pa.int64()),
        ("width", pa.int32()),  # as shown, after the orientation tag
        ("height", pa.int32()),
        ("format", pa.string()),  # as Pillow names them
        ("mode", pa.string()),
        ("sha256", pa.string()),  # of the bytes
        ("pixel_sha256", pa.string()),  # of the pixels as shown
        ("ahash", pa.string()),  # 16 hex digits, imagehash's definition
        ("dhash", pa.string()),
        ("phash", pa.string()),
        ("hash_method", pa.string()),  # `full` or the reduced decode used
        ("keeper_key", pa.string()),
        ("hamming_distance", pa.int32()),
        ("duplicate_kind", pa.string()),  # `exact`, `pixel`, `near`
        ("noise_sigma", pa.float64()),  # 0..255 scale
        ("denoised", pa.bool_()),
        ("upscaled", pa.bool_()),
        ("quality", pa.float64()),  # codec quality used, 0..100
        ("bpp", pa.float64()),  # 8 * bitstream bytes / (width * height)
        ("psnr", pa.float64()),  # decoded bitstream against the encoded image, dB
        ("ms_ssim", pa.float64()),  # null under 160 pixels
        ("psnr_source", pa.float64()),  # what restore gives against the source pixels, dB
        ("ssimulacra2", pa.float64()),  # the same by SSIMULACRA2, at most 100; null under 8 pixels a side
        ("worst_tile", pa.float64()),  # 0..1: the worst part's share of its own structure that restore gives back
        ("similar_to", pa.string()),  # another key that looks much the same and is not given up for it
        ("form", pa.string()),  # what it is stored as: npi, jxl-jpeg, lossless, exact, avif, jxl
        ("gives_back", pa.string()),  # what restore gives: `bytes`, `pixels` or `seen`
        ("content", pa.string()),  # photograph, graphics, text, labels, texture: what it was taken for
        ("not_removable", pa.string()),  # why the original must stay although DEST gives it back; null: it need not
        ("codec", pa.string()),  # bitstream format version
        ("model", pa.string()),  # model hash
        ("seconds", pa.float64()),
        ("error", pa.string()),  # exception class and message, for `failed`
    ]
)
