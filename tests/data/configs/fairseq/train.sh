fairseq-train data-bin/iwslt14 \
    --arch transformer_iwslt_de_en --optimizer adam --clip-norm \
    0.1 --max-tokens 4096 \
    --criterion label_smoothed_cross_entropy
