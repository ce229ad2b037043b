"""STAC: an item a scene, a collection and a catalog over them, and the models that found it all.

OUT/catalog.json                  the way in: the collection, and the models
OUT/collection.json               extents and summaries of all scenes
OUT/items/<scene_id>.json         published with its scene
OUT/items.parquet                 the same items as stac-geoparquet
OUT/models/<model>.json           the model's item (MLM)

Links are relative, so the folder can be moved or served as it is. Nothing in them depends on
when, where or how often it was run.
"""
