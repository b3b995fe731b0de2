# Every target wraps plain commands, which README.md gives as well.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = runs/demo

.PHONY: setup demo delays test lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[all,dev]"
	@touch $@

demo: setup
	$(BIN)/python -m train.digits $(RUN)/digits
	$(BIN)/python -m train fit --config configs/digits.yaml
	$(BIN)/python -m hub export --checkpoint $(RUN)/checkpoints/last.ckpt --out $(RUN)
	$(BIN)/python -m eval accuracy --model local-dir:$(RUN) --data $(RUN)/digits --output $(RUN)/results.json
	$(BIN)/python -m eval kernels --model local-dir:$(RUN) --picture $(RUN)/kernels.png
	$(BIN)/python -m eval predict --model local-dir:$(RUN) --picture $(RUN)/predictions.png $(RUN)/digits/val/*/*[05][05].png
	$(BIN)/python -m train fit --config configs/digits.yaml --model.name convnext_tiny --model.model_kwargs "{depths: [1, 1, 2, 1], dims: [24, 32, 48, 64], patch_size: 2, ls_init_value: 1.0}" --trainer.default_root_dir $(RUN)/plain
	$(BIN)/python -m hub export --checkpoint $(RUN)/plain/checkpoints/last.ckpt --out $(RUN)/plain
	$(BIN)/python -m eval accuracy --model local-dir:$(RUN)/plain --data $(RUN)/digits --output $(RUN)/plain/results.json
	$(BIN)/python -m eval report $(RUN)/results.json $(RUN)/plain/results.json --output $(RUN)/compared.html --title "Learned spacings and 7x7 kernels"
	@echo
	@echo "A ConvNeXt with learned spacings was trained on the digits of $(RUN)/digits, evaluated on held-out"
	@echo "images, saved as safetensors, loaded again through timm and asked about single images; then its plain"
	@echo "twin with 7x7 kernels was trained alike. (Digits are easy: both are right nearly always.) Look at:"
	@echo "  $(RUN)/positions.gif      how the elements of the kernels moved during training: each dot is one weight"
	@echo "  $(RUN)/positions.png      where they started and where they are now"
	@echo "  $(RUN)/kernels.png        the kernels that they make: red is positive, blue negative, a dot is an element"
	@echo "  $(RUN)/predictions.png    what the model says of single images, green if right"
	@echo "  $(RUN)/compared.html      both models' accuracy, from results.json and plain/results.json"
	@echo "Next, in Python ($(BIN)/python): import timm, dcls_models;"
	@echo "  timm.create_model(\"local-dir:$(RUN)\", pretrained=True)   or   timm.list_models(\"*dcls*\")"

delays: setup
	$(BIN)/python -m train.speech runs/speech
	$(BIN)/python -m train.delays fit --config configs/delays/digits.yaml
	$(BIN)/python -m train.delays test --config configs/delays/digits.yaml --ckpt_path last
	$(BIN)/python -m eval delays --checkpoint runs/delays/checkpoints/last.ckpt --output runs/delays/results.json
	@echo
	@echo "A spiking network with learned delays was trained on spoken digits and tested on voices that it had not"
	@echo "heard. Look at runs/delays: delays.png (before and after), raster.png (the spikes of one word), curves.png,"
	@echo "results.json, and config.json with model.safetensors (dcls_models.spiking.DelayNet.load)."

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pylint dcls_models train eval hub

clean:
	rm -rf $(VENV) runs build dist *.egg-info
