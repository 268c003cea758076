"""Caffe's protobuf messages, as far as an importer for inference and the reader of solvers need them.

Field names, numbers, types and defaults are facts of Caffe's file format. Of networks, fields that change
neither what a trained one computes nor how it is trained on (engines, data sources) are left out: the parsers
skip them. `ceil_mode` of pooling is not BVLC's, but of forks of it.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

MESSAGES = """
SolverParameter
    enum SolverType SGD=0 NESTEROV=1 ADAGRAD=2 RMSPROP=3 ADADELTA=4 ADAM=5
    base_lr 5 float
    max_iter 7 int32
    lr_policy 8 string fixed
    gamma 9 float
    power 10 float
    momentum 11 float
    weight_decay 12 float
    stepsize 13 int32
    random_seed 20 int64 -1
    regularization_type 29 string L2
    solver_type 30 SolverParameter.SolverType
    delta 31 float 1e-8
    stepvalue 34 int32*
    clip_gradients 35 float -1
    iter_size 36 int32 1
    momentum2 39 float 0.999
    type 40 string SGD
NetParameter
    name 1 string
    layers 2 V1LayerParameter*
    input 3 string*
    input_dim 4 int32*
    state 6 NetState
    input_shape 8 BlobShape*
    layer 100 LayerParameter*
NetState
    enum Phase TRAIN=0 TEST=1
    phase 1 NetState.Phase TEST
    level 2 int32 0
    stage 3 string*
NetStateRule
    phase 1 NetState.Phase
    min_level 2 int32
    max_level 3 int32
    stage 4 string*
    not_stage 5 string*
BlobShape
    dim 1 int64*
BlobProto
    num 1 int32 0
    channels 2 int32 0
    height 3 int32 0
    width 4 int32 0
    data 5 bytes
    shape 7 BlobShape
    double_data 8 bytes
ParamSpec
    name 1 string
    lr_mult 3 float 1
    decay_mult 4 float 1
LayerParameter
    name 1 string
    type 2 string
    bottom 3 string*
    top 4 string*
    loss_weight 5 float*
    param 6 ParamSpec*
    blobs 7 BlobProto*
    include 8 NetStateRule*
    exclude 9 NetStateRule*
    argmax_param 103 ArgMaxParameter
    concat_param 104 ConcatParameter
    convolution_param 106 ConvolutionParameter
    eltwise_param 110 EltwiseParameter
    exp_param 111 ExpParameter
    inner_product_param 117 InnerProductParameter
    lrn_param 118 LRNParameter
    pooling_param 121 PoolingParameter
    power_param 122 PowerParameter
    relu_param 123 ReLUParameter
    softmax_param 125 SoftmaxParameter
    slice_param 126 SliceParameter
    prelu_param 131 PReLUParameter
    reshape_param 133 ReshapeParameter
    log_param 134 LogParameter
    flatten_param 135 FlattenParameter
    batch_norm_param 139 BatchNormParameter
    elu_param 140 ELUParameter
    bias_param 141 BiasParameter
    scale_param 142 ScaleParameter
    input_param 143 InputParameter
    crop_param 144 CropParameter
    clip_param 148 ClipParameter
    permute_param 202 PermuteParameter
V1LayerParameter
    enum LayerType NONE=0 ACCURACY=1 BNLL=2 CONCAT=3 CONVOLUTION=4 DATA=5 DROPOUT=6 EUCLIDEAN_LOSS=7 \
FLATTEN=8 HDF5_DATA=9 HDF5_OUTPUT=10 IM2COL=11 IMAGE_DATA=12 INFOGAIN_LOSS=13 INNER_PRODUCT=14 LRN=15 \
MULTINOMIAL_LOGISTIC_LOSS=16 POOLING=17 RELU=18 SIGMOID=19 SOFTMAX=20 SOFTMAX_LOSS=21 SPLIT=22 TANH=23 \
WINDOW_DATA=24 ELTWISE=25 POWER=26 SIGMOID_CROSS_ENTROPY_LOSS=27 HINGE_LOSS=28 MEMORY_DATA=29 ARGMAX=30 \
THRESHOLD=31 DUMMY_DATA=32 SLICE=33 MVN=34 ABSVAL=35 SILENCE=36 CONTRASTIVE_LOSS=37 EXP=38 DECONVOLUTION=39
    layer 1 V0LayerParameter
    bottom 2 string*
    top 3 string*
    name 4 string
    type 5 V1LayerParameter.LayerType
    blobs_lr 7 float*
    weight_decay 8 float*
    blobs 6 BlobProto*
    concat_param 9 ConcatParameter
    convolution_param 10 ConvolutionParameter
    inner_product_param 17 InnerProductParameter
    lrn_param 18 LRNParameter
    pooling_param 19 PoolingParameter
    power_param 21 PowerParameter
    argmax_param 23 ArgMaxParameter
    eltwise_param 24 EltwiseParameter
    relu_param 30 ReLUParameter
    slice_param 31 SliceParameter
    include 32 NetStateRule*
    exclude 33 NetStateRule*
    loss_weight 35 float*
    softmax_param 39 SoftmaxParameter
    exp_param 41 ExpParameter
    param 1001 string*
V0LayerParameter
    name 1 string
    type 2 string
FillerParameter
    enum VarianceNorm FAN_IN=0 FAN_OUT=1 AVERAGE=2
    type 1 string constant
    value 2 float 0
    min 3 float 0
    max 4 float 1
    mean 5 float 0
    std 6 float 1
    sparse 7 int32 -1
    variance_norm 8 FillerParameter.VarianceNorm FAN_IN
ArgMaxParameter
    out_max_val 1 bool false
    top_k 2 uint32 1
    axis 3 int32
BatchNormParameter
    use_global_stats 1 bool
    eps 3 float 1e-5
BiasParameter
    axis 1 int32 1
    num_axes 2 int32 1
    filler 3 FillerParameter
ClipParameter
    min 1 float
    max 2 float
ConcatParameter
    concat_dim 1 uint32 1
    axis 2 int32 1
ConvolutionParameter
    num_output 1 uint32
    bias_term 2 bool true
    pad 3 uint32*
    kernel_size 4 uint32*
    group 5 uint32 1
    stride 6 uint32*
    weight_filler 7 FillerParameter
    bias_filler 8 FillerParameter
    pad_h 9 uint32
    pad_w 10 uint32
    kernel_h 11 uint32
    kernel_w 12 uint32
    stride_h 13 uint32
    stride_w 14 uint32
    axis 16 int32 1
    dilation 18 uint32*
CropParameter
    axis 1 int32 2
    offset 2 uint32*
EltwiseParameter
    enum EltwiseOp PROD=0 SUM=1 MAX=2
    operation 1 EltwiseParameter.EltwiseOp SUM
    coeff 2 float*
ELUParameter
    alpha 1 float 1
ExpParameter
    base 1 float -1
    scale 2 float 1
    shift 3 float 0
FlattenParameter
    axis 1 int32 1
    end_axis 2 int32 -1
InnerProductParameter
    num_output 1 uint32
    bias_term 2 bool true
    weight_filler 3 FillerParameter
    bias_filler 4 FillerParameter
    axis 5 int32 1
    transpose 6 bool false
InputParameter
    shape 1 BlobShape*
LogParameter
    base 1 float -1
    scale 2 float 1
    shift 3 float 0
LRNParameter
    enum NormRegion ACROSS_CHANNELS=0 WITHIN_CHANNEL=1
    local_size 1 uint32 5
    alpha 2 float 1
    beta 3 float 0.75
    norm_region 4 LRNParameter.NormRegion ACROSS_CHANNELS
    k 5 float 1
PermuteParameter
    order 1 uint32*
PoolingParameter
    enum PoolMethod MAX=0 AVE=1 STOCHASTIC=2
    enum RoundMode CEIL=0 FLOOR=1
    pool 1 PoolingParameter.PoolMethod MAX
    kernel_size 2 uint32
    stride 3 uint32 1
    pad 4 uint32 0
    kernel_h 5 uint32
    kernel_w 6 uint32
    stride_h 7 uint32
    stride_w 8 uint32
    pad_h 9 uint32
    pad_w 10 uint32
    global_pooling 12 bool false
    round_mode 13 PoolingParameter.RoundMode CEIL
    ceil_mode 14 bool true
PowerParameter
    power 1 float 1
    scale 2 float 1
    shift 3 float 0
PReLUParameter
    filler 1 FillerParameter
    channel_shared 2 bool false
ReLUParameter
    negative_slope 1 float 0
ReshapeParameter
    shape 1 BlobShape
    axis 2 int32 0
    num_axes 3 int32 -1
ScaleParameter
    axis 1 int32 1
    num_axes 2 int32 1
    filler 3 FillerParameter
    bias_term 4 bool false
    bias_filler 5 FillerParameter
SliceParameter
    slice_dim 1 uint32 1
    slice_point 2 uint32*
    axis 3 int32 1
SoftmaxParameter
    axis 2 int32 1
"""
"""One message per unindented line; its enums, and its fields as `name number type[* if repeated] [default]`.

`BlobProto.data` and `double_data` are packed floats and doubles in Caffe. On the wire that is what bytes are,
and bytes become an array without a loop over numbers.
"""

SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "float", "int32", "int64", "string", "uint32")
}


def _file_descriptor(table: str) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="onnxcompress/caffe.proto", package="caffe")
    for line in table.strip().splitlines():
        words = line.split()
        if not line.startswith(" "):
            message = file.message_type.add(name=line)
        elif words[0] == "enum":
            enum = message.enum_type.add(name=words[1])
            for word in words[2:]:
                name, number = word.split("=")
                enum.value.add(name=name, number=int(number))
        else:
            name, number, kind, *default = words
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            field = message.field.add(name=name, number=int(number))
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in SCALARS:
                field.type = SCALARS[kind]
            else:
                field.type = field.TYPE_ENUM if "." in kind else field.TYPE_MESSAGE
                field.type_name = f".caffe.{kind}"
            if default:
                field.default_value = default[0]
    return file


def _message_classes(*names: str) -> list[Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file_descriptor(MESSAGES))
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in names]


NetParameter, LayerParameter, ParamSpec, FillerParameter, SolverParameter = _message_classes(
    "NetParameter", "LayerParameter", "ParamSpec", "FillerParameter", "SolverParameter"
)
