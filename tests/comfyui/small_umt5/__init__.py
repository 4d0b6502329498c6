"""Not a part of the pack: the tests load it into their ComfyUI to make its umT5 small, which has 11 GB otherwise.

Everything else about the text encoder stays ComfyUI's own: file, detection, tokenizer and layers.
"""

import comfy.text_encoders.wan as wan

NODE_CLASS_MAPPINGS: dict = {}
CONFIG = {"vocab_size": 384, "d_kv": 8, "num_heads": 1, "d_ff": 16}


class SmallUMT5(wan.UMT5XXlModel):
    def __init__(self, *args, model_options=None, **kwargs):
        own = {"model_name": "umt5xxl", "umt5xxl_model_config": CONFIG}
        super().__init__(*args, model_options={**(model_options or {}), **own}, **kwargs)


wan.UMT5XXlModel = SmallUMT5
