"""A name, a file or a function becomes images, events or batches of them."""

from speedysnn.data.batches import Batch as Batch
from speedysnn.data.batches import iter_batches as iter_batches
from speedysnn.data.batches import steps_of as steps_of
from speedysnn.data.image_folder import load_image_folder as load_image_folder
from speedysnn.data.images import ArrayStore as ArrayStore
from speedysnn.data.images import ImageData as ImageData
from speedysnn.data.images import Loaded as Loaded
from speedysnn.data.images import parse_normalize as parse_normalize
from speedysnn.data.readers import from_function as from_function
from speedysnn.data.readers import load_cifar10 as load_cifar10
from speedysnn.data.readers import load_digits as load_digits
from speedysnn.data.readers import load_fashion_mnist as load_fashion_mnist
from speedysnn.data.readers import load_npz as load_npz
from speedysnn.data.registry import HANDLERS as HANDLERS
from speedysnn.data.registry import SPLITS as SPLITS
from speedysnn.data.registry import DataKind as DataKind
from speedysnn.data.registry import LoadData as LoadData
from speedysnn.data.registry import kinds_help as kinds_help
from speedysnn.data.registry import load as load
from speedysnn.data.registry import loader as loader
from speedysnn.data.registry import split_holdout as split_holdout
