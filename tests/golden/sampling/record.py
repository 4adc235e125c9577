"""Records what transformers 4.33.3 does with given logits: beams.json and choices.json.

    python tests/golden/sampling/record.py

needs torch 2.0.1 and transformers 4.33.3 on a CPU, nothing else; seeds are fixed below.

A table stands for the model: the logits after a sequence are row
(last + 3 * last but one + 5 * generated) mod rows of the table.
"""

import json
import pathlib

import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.generation import logits_process as rules
from transformers.modeling_outputs import CausalLMOutput

HERE = pathlib.Path(__file__).parent
VOCABULARY, ROWS, PAD = 12, 17, 11


class TableConfig(PretrainedConfig):
    model_type = "table"


class Table(PreTrainedModel):
    config_class = TableConfig

    def __init__(self, logits, prompt_length):
        super().__init__(TableConfig(vocab_size=VOCABULARY))
        self.logits, self.prompt_length = logits, prompt_length
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def can_generate(self):
        return True

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}

    def forward(self, input_ids, **_):
        generated = input_ids.shape[1] - self.prompt_length
        row = (input_ids[:, -1] + 3 * input_ids[:, -2] + 5 * generated) % ROWS
        return CausalLMOutput(logits=self.logits[row][:, None])


def number(x):
    """Four decimals, as the fixture will have it."""
    return round(float(x), 4)


def beam_case(tables, generator, index):
    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    beams = pick(2, 3, 3, 4, 5)
    length = pick(2, 3, 6, 20)
    case = {
        "table": index % len(tables),
        "prompt": torch.randint(0, PAD, (length,), generator=generator).tolist(),
        "left_pads": pick(0, 0, 0, 4),
        "eos": pick([2], [2], [2, 7]),
        "suppress": pick([], [11], [0, 11]),
        "options": {
            "max_new_tokens": pick(1, 4, 8, 12),
            "min_new_tokens": pick(0, 0, 0, 2),
            "num_beams": beams,
            "length_penalty": pick(-2.0, 0.0, 1.0, 0.6),
            "early_stopping": pick(False, False, True, "never"),
            "repetition_penalty": pick(1.0, 1.0, 1.3, 0.8),
            "no_repeat_ngram_size": pick(0, 0, 0, 2),
        },
    }
    options = dict(case["options"])
    if options["min_new_tokens"] > options["max_new_tokens"]:
        options["min_new_tokens"] = case["options"]["min_new_tokens"] = 0
    if case["left_pads"]:
        # Pads would count as repeated tokens upstream.
        for name, off in (("repetition_penalty", 1.0), ("no_repeat_ngram_size", 0)):
            options[name] = case["options"][name] = off
    ids = torch.tensor([[PAD] * case["left_pads"] + case["prompt"]])
    logits = torch.tensor(tables[case["table"]], dtype=torch.float32)
    config = GenerationConfig(
        **options,
        eos_token_id=case["eos"],
        pad_token_id=PAD,
        suppress_tokens=case["suppress"] or None,
        num_return_sequences=beams,
        return_dict_in_generate=True,
        output_scores=True,
    )
    out = Table(logits, ids.shape[1]).generate(ids, generation_config=config)
    answers = []
    for sequence, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
        answer = sequence[ids.shape[1] :]
        while answer and answer[-1] == PAD:
            answer.pop()
        answers.append({"answer": answer, "score": score})
    case["hypotheses"] = answers
    return case


def choice_case(generator, index):
    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    logits = [number(x) for x in 3 * torch.randn(40, generator=generator)]
    history = torch.randint(0, 40, (30,), generator=generator).tolist()
    options = {
        "temperature": pick(0.3, 0.7, 1.0, 1.0, 2.5),
        "top_k": pick(0, 0, 1, 5, 50),
        "top_p": pick(1.0, 0.95, 0.8, 0.3, 0.01),
        "repetition_penalty": pick(1.0, 1.2, 0.7),
        "no_repeat_ngram_size": pick(0, 1, 2),
        "min_new_tokens": pick(0, 5),
    }
    case = {"logits": logits, "history": history, "generated": 4, "eos": [3], "suppress": [7, 9]}
    case["options"] = options
    steps = []
    if options["repetition_penalty"] != 1.0:
        steps.append(rules.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if options["no_repeat_ngram_size"]:
        steps.append(rules.NoRepeatNGramLogitsProcessor(options["no_repeat_ngram_size"]))
    if options["min_new_tokens"]:
        prompt = len(history) - case["generated"]
        steps.append(
            rules.MinNewTokensLengthLogitsProcessor(prompt, options["min_new_tokens"], case["eos"])
        )
    steps.append(rules.SuppressTokensLogitsProcessor(case["suppress"]))
    ids, row = torch.tensor([history]), torch.tensor([logits], dtype=torch.float32)
    case["greedy"] = int(rules.LogitsProcessorList(steps)(ids, row.clone()).argmax())
    if options["temperature"] != 1.0:
        steps.append(rules.TemperatureLogitsWarper(options["temperature"]))
    if options["top_k"]:
        steps.append(rules.TopKLogitsWarper(options["top_k"]))
    if options["top_p"] < 1.0:
        steps.append(rules.TopPLogitsWarper(options["top_p"]))
    probabilities = rules.LogitsProcessorList(steps)(ids, row.clone()).softmax(-1)[0]
    kept = probabilities.nonzero()[:, 0].tolist()
    case["probabilities"] = {i: round(float(probabilities[i]), 8) for i in kept}
    return case


def write(name, content):
    content = {"transformers": transformers.__version__, "torch": torch.__version__, **content}
    lines = json.dumps(content).replace('{"table"', '\n{"table"').replace('{"logits"', '\n{"logits"')
    (HERE / name).write_text(lines + "\n")


def main():
    generator = torch.Generator().manual_seed(20)
    tables = []
    for spread in (0.5, 1.0, 2.0, 4.0):
        rows = spread * torch.randn(ROWS, VOCABULARY, generator=generator)
        rows[:, 2] += spread  # answers that end are the interesting ones
        rows[:, PAD] = -30.0  # an answer never holds a pad, so what follows one is padding
        tables.append([[number(x) for x in row] for row in rows])
    beams = [beam_case(tables, generator, i) for i in range(80)]
    write("beams.json", {"tables": tables, "cases": beams})
    write("choices.json", {"cases": [choice_case(generator, i) for i in range(40)]})


main()
