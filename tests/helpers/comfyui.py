"""A stand-in for the process of a ComfyUI server: the modules that ``nodes.host`` finds there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from weakref import WeakSet

import torch


class Interrupted(Exception):  # noqa: N818 (named like ComfyUI's InterruptProcessingException)
    pass


class FakeModelPatcher:
    """What ComfyUI knows of a model: the module, and how much of it is loaded."""

    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.loaded = 0

    def model_size(self):
        return sum(t.nbytes for t in self.model.state_dict().values())

    def loaded_size(self):
        return self.loaded

    def load(self):
        if not self.loaded:  # ComfyUI moves no model that it believes loaded
            self.model.to(self.load_device)
            self.loaded = self.model_size()

    def detach(self):
        self.model.to(self.offload_device)
        self.loaded = 0


class FakeComfyUI:
    """The parts of ComfyUI that the host calls, recording the calls."""

    def __init__(self, models_dir, device="cpu"):
        self.calls: list[tuple] = []
        self.interrupted = False
        self.keeps_off = False  # as with --novram
        self.crowded = False  # room for what is asked for, and nothing else
        self.loaded: WeakSet[FakeModelPatcher] = WeakSet()
        self.dtype = torch.bfloat16
        fake = self

        folders = ModuleType("folder_paths")
        folders.models_dir = str(models_dir)
        folders.folder_names_and_paths = {}
        own = {"loras": ([str(Path(models_dir) / "loras")], {".safetensors"})}
        folders.get_folder_paths = lambda name: list((own | folders.folder_names_and_paths)[name][0])

        def add_model_folder_path(name, path, is_default=False):
            if name not in folders.folder_names_and_paths:
                folders.folder_names_and_paths[name] = ([], set())
            paths = folders.folder_names_and_paths[name][0]
            if path not in paths:
                paths.insert(0 if is_default else len(paths), path)

        folders.add_model_folder_path = add_model_folder_path
        folders.get_input_directory = lambda: str(Path(models_dir).parent / "input")
        folders.get_output_directory = lambda: str(Path(models_dir).parent / "output")

        def throw_exception_if_processing_interrupted():
            if fake.interrupted:
                raise Interrupted

        models = ModuleType("comfy.model_management")
        models.get_torch_device = lambda: torch.device(device)
        models.unet_offload_device = lambda: torch.device("cpu")
        models.intermediate_device = lambda: torch.device("cpu")
        models.OOM_EXCEPTION = torch.cuda.OutOfMemoryError
        models.load_models_gpu = self.load_models_gpu
        models.soft_empty_cache = lambda: self.calls.append(("soft_empty_cache",))
        models.unet_dtype = lambda **_: self.dtype
        models.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted

        class ProgressBar:
            def __init__(self, total):
                fake.calls.append(("bar", total))

            def update_absolute(self, value, total=None, preview=None):
                fake.calls.append(("update", value, total, preview))

        utils = ModuleType("comfy.utils")
        utils.ProgressBar = ProgressBar
        patchers = ModuleType("comfy.model_patcher")
        patchers.ModelPatcher = FakeModelPatcher
        comfy = ModuleType("comfy")
        comfy.model_management, comfy.utils, comfy.model_patcher = models, utils, patchers
        self.folders = folders
        self.modules = {
            "folder_paths": folders,
            "comfy": comfy,
            "comfy.model_management": models,
            "comfy.utils": utils,
            "comfy.model_patcher": patchers,
        }

    def load_models_gpu(self, models, memory_required=0, force_full_load=False):
        self.calls.append(("load", memory_required, force_full_load))
        if self.crowded:
            for patcher in self.loaded.difference(models):  # those that are asked for together are left alone
                patcher.detach()
        for patcher in [] if self.keeps_off else models:
            patcher.load()
            self.loaded.add(patcher)


def comfyui_starter(models_dir, monkeypatch):
    """A function that makes this process look like ComfyUI to the end of the test; returns the stand-in."""

    def start(**options) -> FakeComfyUI:
        fake = FakeComfyUI(models_dir, **options)
        for name, module in fake.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return fake

    return start
