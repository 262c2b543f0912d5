from dpn.benchmarks import build
from tests.benchmarks.files import write_table
from tests.benchmarks.test_mmbench import OTHER, TURNED, rows

SPLIT = "mmbench_dev_cn_20231003"


def make(root):
    chinese = {"question": "这是什么", "hint": "nan", "A": "猫", "C": "狗"}
    write_table(root / "mmbench_cn" / f"{SPLIT}.tsv", rows(chinese, TURNED, OTHER))


def test_the_prompt_ends_in_chinese(tmp_path):
    make(tmp_path)
    mmbench = build("mmbench_cn", root=tmp_path)
    questions = mmbench.questions()
    assert questions[0].prompt == "这是什么\nA. 猫\nB. Na\nC. 狗\n请直接回答选项字母。"
    assert mmbench.score(questions[:1], ["我想是狗"], tmp_path).samples == [1]
    mmbench.upload(questions, ["C", "B", "A"], tmp_path)
    assert (tmp_path / f"{SPLIT}.xlsx").exists()
