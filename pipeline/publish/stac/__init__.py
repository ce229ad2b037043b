"""STAC: an item per scene, a collection and a catalog over them, and an item per model.

OUT/catalog.json                  the entry point: links to the collection and the models
OUT/collection.json               extents and summaries of all scenes
OUT/items/<scene_id>.json         written with the files of its scene
OUT/items.parquet                 the same items as stac-geoparquet
OUT/models/<model>.json           the model's item (MLM)

Links are relative, so the folder can be moved or served. The content does not depend on when,
where or how often scenesweep ran.
"""
