"""The names of the web UI's own fields of `txt2img`, which its clients send whether they mean something or not."""

from typing import Final

from schnell.web.dialects.translation import SWITCHES
from schnell.web.native.lora_names import LORA_KEYS

#: Those of `StableDiffusionTxt2ImgProcessingAPI` in the web UI 1.10, and of its forks Forge and reForge.
_WEB_UI: Final = (
    *("prompt", "negative_prompt", "styles", "seed", "subseed", "subseed_strength", "seed_resize_from_h"),
    *("seed_resize_from_w", "seed_enable_extras", "sampler_name", "sampler_index", "scheduler", "batch_size", "n_iter"),
    *("steps", "cfg_scale", "distilled_cfg_scale", "width", "height", "restore_faces", "tiling", "eta", "clip_skip"),
    *("do_not_save_samples", "do_not_save_grid", "denoising_strength", "s_min_uncond", "s_churn", "s_tmax", "s_tmin"),
    *("s_noise", "override_settings", "override_settings_restore_afterwards", "refiner_checkpoint"),
    *("refiner_switch_at", "disable_extra_networks", "firstpass_image", "comments", "firstphase_width"),
    *("firstphase_height", "script_name", "script_args", "alwayson_scripts", "send_images", "save_images"),
    *("force_task_id", "infotext", "include_init_images"),
)
_HIGH_RESOLUTION: Final = (
    *("enable_hr", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"),
    *("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg"),
    *("hr_distilled_cfg", "hr_additional_modules"),
)
#: Names that are not among these are told to the client.
KNOWN_FIELDS: Final = (*_WEB_UI, *_HIGH_RESOLUTION, *LORA_KEYS, *SWITCHES)
