module adaptrain.io/localcluster/pause

go 1.26
